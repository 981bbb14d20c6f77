"""Attacks on a served demo, while somebody who behaves goes on asking."""
