"""`python -m hf_proxadam.launch SCRIPT ...`: runs an unmodified script with the optimizers registered."""

from hf_proxadam.trainer.launch import main

if __name__ == "__main__":
    main()
