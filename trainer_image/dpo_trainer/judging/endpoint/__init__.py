"""A judge behind OpenAI's chat completions API: what it is asked, how its verdicts are read, and what it costs."""
