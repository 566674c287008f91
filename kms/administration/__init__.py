"""What operators do, behind the operators' routes and the commands alike.

Each method takes the `Actor` first and answers with a JSON object, the shape that the routes document.
"""
