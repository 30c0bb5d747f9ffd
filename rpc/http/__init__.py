"""Smart HTTP: what `git clone` and `git push` talk to."""
