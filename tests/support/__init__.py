"""What the tests share: real servers, real cities, commands in processes of their own."""
