"""What guards on a real model do over HTTP: cells of prompts, and what is refused of each."""
