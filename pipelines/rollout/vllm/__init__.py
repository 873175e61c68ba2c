"""The rollout engine ``vllm``, in this process or behind HTTP."""
