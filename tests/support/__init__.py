"""What several test folders share: a demo cluster of real processes, and a real git client."""
