"""The page of measurements and README's figures, made from result files; one module a section."""
