"""mattecompress: a compiler for matting networks."""
