"""What answers prompts: one file for each engine, and what generate knows of them (engine.py). vLLM is imported in vllm_process.py alone."""
