"""The training loop and what it needs: data made ready, programs compiled, results at the end."""
