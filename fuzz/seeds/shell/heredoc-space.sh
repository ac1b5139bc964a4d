cat <<'E F'
E
echo ${{ matrix.v }}
E F
