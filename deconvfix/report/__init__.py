"""Results of a conversion for people and programs: JSON, HTML, pictures."""
