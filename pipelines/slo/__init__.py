"""Service-level objectives: their error budgets, which stop promotions once they are spent."""
