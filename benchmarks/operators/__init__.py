"""What guards' operators cost by themselves, and how many operations they add to a step."""
