"""What a command of `outrider train` does, from what it was given to what it leaves."""
