"""What a federation between real machines needs beside the apps: keys and certificates, start-up files, a closed Control API."""
