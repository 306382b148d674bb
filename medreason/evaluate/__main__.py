from medreason.evaluate.budgets import main

if __name__ == "__main__":
    main()
