"""`quorepo doctor`: is this machine fit to run its node, and can the nodes hear each other?"""
