case ${{ matrix.v }} in a|b) echo 1;; *) : ;; esac
if [ -n ${{ matrix.v }} ]; then f() { echo "$@"; }; f ${{ matrix.v }}; fi
