"""Tools that control and watch runs from outside, as the command line does. Nothing below knows of them."""
