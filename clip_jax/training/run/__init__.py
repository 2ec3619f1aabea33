"""What a host does around the step."""
