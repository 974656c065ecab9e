"""What a run would do, said beforehand: fit, memory, licences; nothing is written."""
