"""Weight files: download sources, headers, key maps, opening files, and weights stored in fewer bits."""
