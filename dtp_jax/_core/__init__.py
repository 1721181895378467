"""The first floor: tasks, balancers, what they read, checks, linear algebra."""
