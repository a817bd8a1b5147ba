"""Gates that wait for a person: requests and verdicts, kept so that a change is noticed."""
