"""What each client is made to do, one module a package. They import that package, and nothing else of skillguard."""
