"""edgelstm: trained recurrent models, live."""
