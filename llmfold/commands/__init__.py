"""Commands beside fold and plan, one module each: ``build_parser()`` and ``run(options)``."""
