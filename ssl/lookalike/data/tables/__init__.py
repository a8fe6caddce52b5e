"""Tables of images, of unknown worth: text, Parquet and Arrow, and what their columns say."""
