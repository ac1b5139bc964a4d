for f in ${{ matrix.v }}; do
  printf '%s\n' "$f" ${{ matrix.v }} # ${{ x
done
