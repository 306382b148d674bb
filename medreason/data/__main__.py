from medreason.data.show import main

if __name__ == "__main__":
    main()
