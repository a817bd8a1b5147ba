"""What travels: arrays, records, codecs, framing, checksums, and the messages made of them."""
