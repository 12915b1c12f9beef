"""What runs inside the sandbox: standard library only, and nothing of the rest of the package.

These files are started by a bare interpreter that sees this folder alone. They get programs, standard input and
expressions to evaluate; an expected value never comes here.
"""
