"""State from files and from other optimizers: bit for bit where it fits, else converted or refused."""
