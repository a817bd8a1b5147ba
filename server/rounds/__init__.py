"""The run, round by round: strategy, schedule, replies, evaluation, operators' commands."""
