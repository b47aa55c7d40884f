"""The run-time checker of annotations in tests: beartype, an int being a float as static checkers have it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
