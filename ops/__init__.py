"""What drives and watches runs from outside, as the command line does. Nothing below knows it."""
