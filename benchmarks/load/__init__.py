"""Load on any OpenAI server, and servers compared under the same load."""
