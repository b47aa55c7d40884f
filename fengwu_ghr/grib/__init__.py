"""GRIB in and out. ecCodes runs on foreign bytes in worker processes only: some corrupt messages kill it."""
