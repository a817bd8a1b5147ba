"""What is sent over the link: arrays, records, codecs, framing, checksums, and the messages made of them."""
