"""The run, round by round: strategy, schedule, replies, evaluation, an operator's word."""
