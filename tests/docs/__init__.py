"""The pages of docs/ and the README: their commands run, what they name exists, and the site is built."""
