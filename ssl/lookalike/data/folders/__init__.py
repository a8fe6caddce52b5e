"""Folders of images as people have them: which files are images, and what their places say."""
