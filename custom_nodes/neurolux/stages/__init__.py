"""The stages of making an image: encode, sample, decode, and what is built of them."""
