"""Processes of a job: joining, agreement, memory."""
