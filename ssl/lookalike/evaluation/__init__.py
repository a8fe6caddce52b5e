"""What embedded images are asked, by what is known of them; how the answers are said, and shown in
images.
"""
