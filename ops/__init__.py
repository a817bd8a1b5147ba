"""Tools that control and watch runs from outside, as the command line does. No lower floor imports them."""
