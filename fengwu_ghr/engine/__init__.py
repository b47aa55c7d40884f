"""Engines: what carries a state one step forward, behind one protocol (`stepper.Stepper`)."""
