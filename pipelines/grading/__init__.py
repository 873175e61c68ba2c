"""Is this answer right: graders in processes that can be killed, and rewards."""
