"""Training a classifier: module.py, what is trained; targets.py, labels as the loss takes them and
the weights of classes.
"""
